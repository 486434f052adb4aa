//! Guest images: the quickstart image and its cache.
