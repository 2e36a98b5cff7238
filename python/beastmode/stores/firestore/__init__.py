"""Firestore as a store. Google's libraries are loaded when a store is made, and only here."""
