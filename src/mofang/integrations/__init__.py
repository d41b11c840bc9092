"""Mofang's knowledge bases under the interfaces of others. One file each, its library imported only when it is used."""
