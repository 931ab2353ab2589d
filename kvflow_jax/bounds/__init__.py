"""What bounds the memory that tenants fill, and the work that they cause."""
