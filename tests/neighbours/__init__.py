"""What tests need beside Kolejka: which machine has it, and how to start and end it; nobody else's is touched."""
