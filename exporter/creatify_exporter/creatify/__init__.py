"""The Creatify API: what it lists, and how that is fetched and read."""
