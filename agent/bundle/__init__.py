"""A built bundle on disk: manifest, variants, blobs by digest. Read-only."""
