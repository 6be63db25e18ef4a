"""What commands and flows do beside the steps."""
