"""Where data sets come from: one reader for each kind of files, `read(Request) -> Found`.

A reader finds its files, checks them and says what is there. It never draws a split (`data.py` does, in one way for
all), and writes nothing to disk but what it downloads, where that is allowed, and what it unpacks.
"""
