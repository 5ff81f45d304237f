"""The page at /: files for a browser. What it shows and does is the public API's; nothing imports this but the app."""
