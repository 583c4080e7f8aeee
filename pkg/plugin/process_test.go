package plugin

const actAsPlugin = "MILLRACE_TEST_PLUGIN"

func pluginMain() int { return 0 }
