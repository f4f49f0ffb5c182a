"""From list files, pictures and labels on disk to arrays."""
