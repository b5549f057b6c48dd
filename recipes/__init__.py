"""Scripts that train what ships."""
