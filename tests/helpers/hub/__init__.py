"""A Hugging Face Hub on loopback, and the programs as a user runs them who is logged in there."""
