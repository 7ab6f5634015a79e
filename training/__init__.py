"""The offline jobs: from items and interactions to a bundle. Never imported by the service."""
