"""What both stages share, one idea a file; imports nothing else of ours."""
