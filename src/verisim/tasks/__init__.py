"""What trained models are for."""
