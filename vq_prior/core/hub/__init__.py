"""The Hugging Face Hub: its client, what our repositories hold, their cards."""
