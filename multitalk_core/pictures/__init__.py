"""Pictures that explain: who is where, who speaks when, and how well mouths follow voices."""
