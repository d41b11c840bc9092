"""Mofang under the interfaces and in the frameworks of others. One file each, its library imported only when used."""
