"""From a picture to the class of each pixel, and to scores."""
