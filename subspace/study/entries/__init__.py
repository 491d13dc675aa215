"""What a name in a study file stands for, and how it is found."""
