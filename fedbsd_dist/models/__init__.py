"""Networks, their split into backbone and head, and their storage."""
