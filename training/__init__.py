"""The offline jobs: from items and interactions to a bundle. Never imported by the service."""


class JobError(Exception):
    """A job cannot go on; the message says what is wrong, where, and what to do."""
