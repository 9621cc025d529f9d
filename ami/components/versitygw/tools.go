//go:build tools

// Package tools names the program that `ami/setup` builds, so that go.mod and go.sum pin it with all it is made of.
package tools

import _ "github.com/versity/versitygw/cmd/versitygw"
