"""Who may call: tokens, roles and TLS, with files that may change while the server runs."""
