"""Weight files: their headers, containers and layouts, and which model a file is."""
