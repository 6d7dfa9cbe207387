"""What semantic codes are worth on OpenMoji, and edits against true counterparts."""
