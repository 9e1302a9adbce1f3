"""The Creatify API: fetching its lists and decoding their tasks."""
