"""Pictures: grey or colour, brought to one size."""
