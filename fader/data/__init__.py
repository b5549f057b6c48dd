"""Records that training and evaluation read: read, checked and made."""
