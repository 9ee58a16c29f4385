"""What the local, embedded Murmura is made of: environment, base model, demo."""
