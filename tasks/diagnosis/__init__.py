"""Why a model is not better, and the next step."""
