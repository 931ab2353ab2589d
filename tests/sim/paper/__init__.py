"""The rules of KVFlow (arXiv 2507.07400), each on the real engine in virtual time."""
