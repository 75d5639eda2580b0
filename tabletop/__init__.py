"""The drawn tabletops, the model that learns them, and the builder of the model that comes with the package."""
