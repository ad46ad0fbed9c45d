"""Whether mouths follow voices, measured from finished frames."""
