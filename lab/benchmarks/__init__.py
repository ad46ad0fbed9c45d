"""`python dev.py bench`: time, memory and drift, written as JSON that the documentation is made from."""
