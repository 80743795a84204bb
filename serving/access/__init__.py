"""Who may call and how much: places, tokens, roles and TLS, with files that may change."""
