"""The only room that runs git or knows a repository's insides."""
