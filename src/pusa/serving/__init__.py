"""`pusa serve`: a durable queue of videos in front of one resident model.

    HTTP -> fields -> Request -> database (the video and its place in the queue, one transaction) -> answer
    worker process: queue -> Request.run -> files -> database

The state of a video is in the database before the client is answered, so that the death of any process loses nothing.
The queue is DBOS: workflows in the same SQLite file or PostgreSQL database. What is written here is the record of a
video, its files, the API and the page. The API never runs the model, and a worker never answers a client.
"""
