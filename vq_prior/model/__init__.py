"""MODEL: its folder, its pipeline, its card, and how it is shared."""
