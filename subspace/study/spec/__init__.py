"""What a study asks for: its runs, as a file, a preset or dataclasses."""
