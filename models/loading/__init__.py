"""Load checkpoints of every supported format onto the devices that compute with them."""
