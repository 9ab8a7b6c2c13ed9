"""What vit.py is composed of. Nothing here imports it: the model is handed over."""
