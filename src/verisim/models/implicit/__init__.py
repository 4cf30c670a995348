"""Models of images as functions of space, age and subject."""
