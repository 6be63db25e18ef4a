"""What Evergreen does: typed functions of files and params, without an orchestrator."""
