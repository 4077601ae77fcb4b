"""A registry for others, over whatever keeps its content: HTTP, access and the distribution API."""
