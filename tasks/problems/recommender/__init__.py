"""What a recommender is made of: histories, sources of candidates, their features, the ranker, and how lists are judged."""
