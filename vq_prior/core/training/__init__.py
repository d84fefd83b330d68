"""What the trainings of both stages share: runs on disk, randomness, optimisers, averages."""
