"""What is shown of a result: files, tables, pictures."""
