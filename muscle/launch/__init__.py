"""The only room that imports Ray: connect, train with Ray Train, evaluate with Ray Data."""
