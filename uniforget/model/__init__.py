"""What can be masked: model families as data, and what is read off a model's weight names and shapes."""
