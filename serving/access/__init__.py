"""Who may call: tokens and roles, TLS, and their files, read again when they change."""
